"""The `graftwerk` command and the Python client: they speak HTTP, and know nothing of the service's insides.

In Python: `from graftwerk.http import Graftwerk`.
"""
