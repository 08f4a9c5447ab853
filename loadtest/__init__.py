"""Drives the service over HTTP as its callers do; imports none of the other packages."""
