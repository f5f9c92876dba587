"""What Tollgate's services share. Nothing in here imports a service."""

__version__ = "0.1.0.dev0"
