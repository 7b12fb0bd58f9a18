# What TorchServe loads from the archive. The code is a package installed beside the server, never part of the archive.
from serving.torchserve_handler import CTRHandler as _CTRHandler


class CTRHandler(_CTRHandler):
    pass
