"""Clock and power of the GPU while it works, through NVIDIA's management library; nothing where that is not to be had."""

import ctypes as c

SM_CLOCK = 1
POWER_INSTANT = 186  # nvmlDeviceGetPowerUsage is an average over a second: too slow for a launch


class FieldValue(c.Structure):
    _fields_ = [
        ("field", c.c_uint),
        ("scope", c.c_uint),
        ("timestamp", c.c_longlong),
        ("latency", c.c_longlong),
        ("value_type", c.c_int),
        ("status", c.c_int),
        ("value", c.c_uint64),
    ]


class Nvml:
    def __init__(self, uuid=None):
        self.device = None
        try:
            self.library = c.CDLL("libnvidia-ml.so.1")
            device = c.c_void_p()
            if self.library.nvmlInit_v2():
                return
            failed = not uuid or self.library.nvmlDeviceGetHandleByUUID(uuid.encode(), c.byref(device))
            if failed:
                failed = self.library.nvmlDeviceGetHandleByIndex_v2(0, c.byref(device))
            if not failed:
                self.device = device
        except (OSError, AttributeError):
            pass

    def sample(self):
        """(MHz of the multiprocessors, watts), None for what cannot be read."""
        if self.device is None:
            return None, None
        return self._clock(), self._power()

    def _clock(self):
        value = c.c_uint()
        return None if self.library.nvmlDeviceGetClockInfo(self.device, SM_CLOCK, c.byref(value)) else value.value

    def _power(self):
        field = FieldValue(field=POWER_INSTANT)
        if not self.library.nvmlDeviceGetFieldValues(self.device, 1, c.byref(field)) and field.status == 0:
            return (field.value & 0xFFFFFFFF) / 1000
        value = c.c_uint()
        return None if self.library.nvmlDeviceGetPowerUsage(self.device, c.byref(value)) else value.value / 1000
