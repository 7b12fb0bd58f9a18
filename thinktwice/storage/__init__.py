"""Files on this machine and in object stores (``s3://``) behind one interface: :func:`thinktwice.storage.open.open_store`.

boto3 is imported only when an ``s3://`` location is opened.
"""
