"""A Hugging Face Hub on 127.0.0.1 for tests: the calls that huggingface_hub 2.4.0 makes to push and to load a model.

It stands for the Hub towards the unmodified client: accounts and tokens, repositories with commits, branches and
tags, upload by LFS over HTTP, download through a second origin. Faults can be put in its way (faults.py). It does
not have: Xet, multipart uploads, pull requests, datasets, spaces, quotas, rate limits. It is no proof that the real
Hub takes a push.
"""
