import torch
DTYPES = ()
def takes_device(device): return device.type == 'cuda'
def unavailable(): return 'x'
