"""What tests share: a finished run, tiny models, a local Hub, and processes that start fast."""
