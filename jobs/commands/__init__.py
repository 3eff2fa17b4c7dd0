"""The commands of `maskrcnn`, one file each."""
