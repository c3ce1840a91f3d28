"""The adversarial game, played where a solver's samples are linear in its numbers."""

from .critics import CriticName, make_critic, parse_critics, register_features
from .play import GameOptions, Table, Turn, judge, take_turn
from .tangent import Tangent, tangent_at

__all__ = [
    "CriticName",
    "GameOptions",
    "Table",
    "Tangent",
    "Turn",
    "judge",
    "make_critic",
    "parse_critics",
    "register_features",
    "take_turn",
    "tangent_at",
]
