"""Translate screens and keyboards into xl's language.

PV and PVH domains have frame buffers; what an HVM domain has on its screen is QEMU's, and is told
in words of their own (xl_parse.c, parse_top_level_vnc_options).  libvirt gives an HVM domain both
(libvirt, libxl_conf.c, libxlMakeBuildInfoVfb).  Passwords are in the configuration, and xl is told
them in it; no message has them.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapvm.hypervisor.xencfgwords import (
    listed,
    number,
    require_nothing,
    taken_switches,
    taken_values,
)
from snapvm.hypervisor.xenconfig import HVM, Config, is_set

_VNC_WORDS = {
    "enable": "vnc",
    "listen": "vnclisten",
    "passwd": "vncpasswd",
    "display": "vncdisplay",
    "findunused": "vncunused",
}
_SDL_WORDS = {"enable": "sdl", "opengl": "opengl", "display": "display", "xauthority": "xauthority"}
_SPICE_WORDS = {
    "enable": "spice",
    "port": "spiceport",
    "tls_port": "spicetls_port",
    "host": "spicehost",
    "disable_ticketing": "spicedisable_ticketing",
    "passwd": "spicepasswd",
    "agent_mouse": "spiceagent_mouse",
    "vdagent": "spicevdagent",
    "clipboard_sharing": "spice_clipboard_sharing",
    "usbredirection": "spiceusbredirection",
    "image_compression": "spice_image_compression",
    "streaming_video": "spice_streaming_video",
}
_OWN_WORDS = {"vnc": _VNC_WORDS, "sdl": _SDL_WORDS, "spice": _SPICE_WORDS}
_SWITCHES = {
    *("enable", "findunused", "opengl"),
    *("disable_ticketing", "agent_mouse", "vdagent", "clipboard_sharing"),
}
_CARDS = {"std": "stdvga", "cirrus": "cirrus", "none": "none", "qxl": "qxl"}
"""What libxl and what xl call the kinds of graphics cards."""


def tell(domain: str, left: Config) -> Iterator[str]:
    """Translate frame buffers; xl gives each a keyboard, and there must be no other keyboards.

    Raises ``DomainRefused``.
    """
    screens, keyboards = left.pop("vfbs", []), left.pop("vkbs", [])
    for keyboard in keyboards:
        usual = {"devid": keyboard.get("devid"), "backend_type": "qemu"}
        rest = {key: value for key, value in keyboard.items() if usual.get(key) != value}
        require_nothing(domain, "vkb", {key: each for key, each in rest.items() if is_set(each)})
    if len(keyboards) not in (0, len(screens)):
        require_nothing(domain, "", {"vkbs": keyboards})
    if screens:
        yield listed(domain, "vfb", [_screen(domain, screen) for screen in screens])


def _screen(domain: str, screen: Config) -> str:
    screen.pop("devid", None)
    words: Config = {}
    for place, names in ((screen.pop("vnc", {}), _VNC_WORDS), (screen.pop("sdl", {}), _SDL_WORDS)):
        words |= {names[key]: place.pop(key) for key in names if key in place}
        screen |= place
    words |= {"keymap": screen.pop("keymap")} if "keymap" in screen else {}
    require_nothing(domain, "vfb", {key: value for key, value in screen.items() if is_set(value)})
    told = [f"{word}={number(value)}" for word, value in words.items()]
    joined = ",".join(told)
    if any("," in text for text in told) or not joined.isprintable():
        require_nothing(domain, "", {"vfbs": told})  # which does not name the password
    return joined


def tell_own(domain: str, own: Config) -> Iterator[str]:
    """Translate an HVM domain's graphics card, and who may look at its screen; take them out.

    Raises ``DomainRefused``.
    """
    for name, words in _OWN_WORDS.items():
        place = own.pop(name, {})
        if not isinstance(place, dict):
            require_nothing(domain, HVM, {name: place})
        on_off = {key: word for key, word in words.items() if key in _SWITCHES}
        where = f"{HVM} {name}"
        yield from taken_switches(domain, where, place, on_off)
        yield from taken_values(domain, where, place, words)
        require_nothing(domain, where, place)
    card = own.pop("vga", {})
    if card:
        kind = str(card.get("kind")) if isinstance(card, dict) and len(card) == 1 else ""
        if kind not in _CARDS:
            require_nothing(domain, HVM, {"vga": card})
        yield f'vga = "{_CARDS[kind]}"'
