"""The only way out: every HTTP call that leaves the process goes through `Outbound`."""

from serai.outbound.bodies import UpstreamTooLarge
from serai.outbound.client import CallOptions, Outbound, Reply, StreamedReply
from serai.outbound.hops import OutboundSecret
from serai.outbound.pinning import Resolver
from serai.outbound.targets import AddressPolicy, Target

__all__ = [
    "AddressPolicy",
    "CallOptions",
    "Outbound",
    "OutboundSecret",
    "Reply",
    "Resolver",
    "StreamedReply",
    "Target",
    "UpstreamTooLarge",
]
