"""The bundled default: a generator of noisy preference pairs, the hidden utility behind them, and a small GPT-2."""
