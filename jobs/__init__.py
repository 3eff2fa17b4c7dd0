"""Entry points on Ray and the command line `maskrcnn`; installed as the package `maskrcnn_jobs`."""
