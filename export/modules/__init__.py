"""Torch modules that exist to be traced: one attention, one rotary embedding, one norm, one snake for all systems."""
