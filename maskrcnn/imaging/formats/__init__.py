"""Single file formats: their structure, as far as decoding depends on it."""
