"""Drawing on a machine without a screen: what MuJoCo and pygame have to be told before they are imported."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from importlib.util import find_spec

EGL_PLATFORM_DEVICE = 0x313F


def has_screen() -> bool:
    """Whether there is a screen; on other systems than Linux there always is."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def draw_offscreen(mujoco: bool) -> None:
    """Set, where the user has not, what lets environments draw without a screen; `mujoco`: by OpenGL, too.

    MuJoCo gets EGL or OSMesa, whichever works here, pyglet (MiniWorld) EGL. SDL (pygame) does not look for a screen,
    of whose absence it and its libraries would print lines of their own.
    """
    if has_screen():
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if mujoco and "MUJOCO_GL" not in os.environ and find_spec("mujoco") and (library := offscreen_library()):
        os.environ["MUJOCO_GL"] = library
    if mujoco and "PYGLET_HEADLESS" not in os.environ and find_spec("pyglet") and offscreen_library() == "egl":
        os.environ["PYGLET_HEADLESS"] = "true"


@functools.cache
def offscreen_library() -> str:
    """`egl` or `osmesa`, whichever can draw here; empty where none can."""
    try:
        return "egl" if egl_works(ctypes.CDLL("libEGL.so.1")) else osmesa()
    except (OSError, AttributeError):
        return osmesa()


def osmesa() -> str:
    """`osmesa` where there is such a library."""
    for version in (8, 6):
        try:
            ctypes.CDLL(f"libOSMesa.so.{version}")
            return "osmesa"
        except OSError:
            continue
    return ""


def egl_works(egl: ctypes.CDLL) -> bool:
    """Whether EGL has a device that begins: `import mujoco` fails otherwise, where MUJOCO_GL is egl."""
    address, pointer, number = egl.eglGetProcAddress, ctypes.c_void_p, ctypes.c_int
    address.restype, egl.eglInitialize.argtypes = pointer, [pointer] * 3
    query_at, display_at = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if not (query_at and display_at):
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, number, ctypes.POINTER(pointer), ctypes.POINTER(number))(query_at)
    display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_at)
    devices, count = (pointer * 10)(), number()
    succeeded = query(10, devices, ctypes.byref(count))
    displays = (display(EGL_PLATFORM_DEVICE, devices[i], None) for i in range(count.value if succeeded else 0))
    return any(one and egl.eglInitialize(one, None, None) for one in displays)


def drawing_hint() -> str:
    """What to do where MuJoCo could not draw; empty where it is not used."""
    mujoco = any(name.partition(".")[0] == "mujoco" for name in sys.modules)  # also where its import has failed
    if not mujoco or (has_screen() and "MUJOCO_GL" not in os.environ):
        return ""
    now = os.environ.get("MUJOCO_GL", "not set")
    return f"; MUJOCO_GL is {now}: without a screen MuJoCo draws with MUJOCO_GL=egl or osmesa, where it is installed"
