"""Masks as run lengths: encoding, decoding, spans and contours."""
