"""The session's parts: options, buffers on the device, and the checks of a model that was loaded there."""
