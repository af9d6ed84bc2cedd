"""The bundled default: a generator of noisy preference pairs, their utility, and a small GPT-2."""
