"""The pair: loading, devices, lean forwards, caches, shapes without weights."""
