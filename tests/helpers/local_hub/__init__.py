"""A Hugging Face Hub on 127.0.0.1 for tests: the calls that huggingface_hub 2.4.0 makes to push and to load a model.

It serves the unmodified client: accounts and tokens, repositories with commits, branches and tags, upload by LFS over
HTTP, download from a second origin. faults.py makes calls fail. It has no Xet, multipart uploads, pull requests,
datasets, spaces, quotas or rate limits. A push that it accepts may still fail on the real Hub.
"""
