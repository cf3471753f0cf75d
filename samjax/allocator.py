"""glibc's allocator for programs that compute on the CPU."""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""From glibc's malloc.h."""

_SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}


def tune_allocator() -> bool:
    """Tells glibc to keep memory that was freed, for the whole process; at any time, also twice.

    XLA takes the memory for its intermediate results anew at every call. glibc hands large pieces
    back to the kernel when they are freed, so that every call faults all of their pages in again;
    on the CPU this can cost more than the arithmetic. What is kept is the most that was in use at
    once, and 256 MiB. The command line does this; `import samjax` does not, since the setting is
    the program's. The same from outside, before the program starts:
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=268435456.

    Returns whether it was done: False where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - other libraries have a mallopt that means other things
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS.items())
