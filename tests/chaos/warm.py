"""What every case needs, loaded once before its process is forked: modules that are imported late, and a template."""

import gc
import importlib.readers

import numpy.ma
import pandas  # which pyarrow imports
import PIL.PpmImagePlugin
import pyarrow.dataset
import s3fs

import chaos.crash
from maskrcnn.visualization import templates

LOADED = (importlib.readers, numpy.ma, pandas, PIL.PpmImagePlugin, pyarrow.dataset, s3fs, chaos.crash)
templates.load("report.html.j2")
gc.freeze()  # what is here stays, and its pages need not be copied into each fork
