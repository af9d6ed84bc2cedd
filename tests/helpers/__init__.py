"""What tests share: a finished run, tiny models, a local Hub, scripts that tests run as processes."""
