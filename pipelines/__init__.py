"""Files and orchestration: everything that touches disk, the network or a server."""
