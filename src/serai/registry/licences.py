"""What the licences of published weights allow, and the gate that reads them.

The table holds facts about licences, read from their texts; it is not legal advice. A version may
say otherwise for itself (`commercial_use = true` after a licence was bought), and then that counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from serai.registry.rules import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """One licence. `id` is its SPDX id, or the name that its publisher gives it."""

    id: str
    name: str
    commercial_use: bool
    research_only: bool = False
    duties: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearance:
    """The gate's answer: whether it may be used here, why, and what whoever uses it must do."""

    allowed: bool
    reason: str
    duties: tuple[str, ...] = ()
    warning: str | None = None


_NOTICE = "Keep the copyright and licence notice with copies of the weights."
_CHANGES = "Say what was changed when passing on changed weights."
_SHARE = "Pass changed weights on under the same licence."
_ATTRIBUTE = "Name the author and the licence."

_ALL = (
    Licence(id="MIT", name="MIT License", commercial_use=True, duties=(_NOTICE,)),
    Licence(id="Apache-2.0", name="Apache License 2.0", commercial_use=True, duties=(_NOTICE, _CHANGES)),
    Licence(id="BSD-3-Clause", name="BSD 3-Clause License", commercial_use=True, duties=(_NOTICE,)),
    Licence(id="CC0-1.0", name="Creative Commons Zero 1.0", commercial_use=True),
    Licence(id="CC-BY-4.0", name="Creative Commons Attribution 4.0", commercial_use=True, duties=(_ATTRIBUTE,)),
    Licence(
        id="CC-BY-SA-4.0",
        name="Creative Commons Attribution-ShareAlike 4.0",
        commercial_use=True,
        duties=(_ATTRIBUTE, _SHARE),
    ),
    Licence(
        id="CC-BY-NC-4.0",
        name="Creative Commons Attribution-NonCommercial 4.0",
        commercial_use=False,
        duties=(_ATTRIBUTE,),
    ),
    Licence(
        id="GPL-3.0-or-later",
        name="GNU General Public License 3 or later",
        commercial_use=True,
        duties=(_NOTICE, _SHARE),
    ),
    Licence(
        id="OpenRAIL++-M",
        name="CreativeML Open RAIL++-M",
        commercial_use=True,
        duties=("Hand its use restrictions on to whoever uses the model.",),
    ),
    Licence(
        id="flux-1-dev-non-commercial",
        name="FLUX.1 [dev] Non-Commercial License",
        commercial_use=False,
        duties=(
            "Running the model for a business or for paying users needs a licence from Black Forest Labs.",
            "Its pictures may be used for any purpose except training a competing model.",
            "Filter or review what is generated against unlawful content, and tell people that it is generated.",
            _NOTICE,
        ),
    ),
    Licence(
        id="wav2lip-non-commercial",
        name="Wav2Lip weights (trained on LRS2)",
        commercial_use=False,
        duties=("Personal, academic or research use only; name the paper (Prajwal et al., 2020).",),
    ),
    Licence(
        id="OPT-175B",
        name="OPT-175B License Agreement",
        commercial_use=False,
        research_only=True,
        duties=(
            "Non-commercial research only; no production, military or surveillance use.",
            'Copies carry: "OPT-175B is licensed under the OPT-175B license, Copyright (c) Meta Platforms, Inc."',
        ),
    ),
    Licence(
        id="llama3.1",
        name="Llama 3.1 Community License",
        commercial_use=True,
        duties=(
            "Show 'Built with Llama'.",
            "Above 700 million monthly users a licence from Meta is needed.",
        ),
    ),
    Licence(
        id="Proprietary-API", name="Terms of the remote service", commercial_use=True, duties=("Its terms apply.",)
    ),
)

_ALIASES = {
    "apache 2.0": "Apache-2.0",
    "apache2": "Apache-2.0",
    "flux-1-dev-non-commercial-license": "flux-1-dev-non-commercial",
    "flux.1-dev-non-commercial": "flux-1-dev-non-commercial",
    "opt-175b-license-agreement": "OPT-175B",
    "gpl-3.0": "GPL-3.0-or-later",
    "openrail++": "OpenRAIL++-M",
    "cc-by-nc": "CC-BY-NC-4.0",
}

LICENCES: dict[str, Licence] = {licence.id.lower(): licence for licence in _ALL}
LICENCES |= {alias: LICENCES[licence_id.lower()] for alias, licence_id in _ALIASES.items()}


def find_licence(name: str) -> Licence | None:
    """Return the licence with this SPDX id or name, whatever its case; None if it is not in the table."""
    return LICENCES.get(name.strip().lower())


def check_licence(
    licence: str, commercial_use: bool | None, duties: Sequence[str], deployment: Deployment
) -> Clearance:
    """Return whether weights under `licence` may be used in `deployment`.

    `commercial_use` is what the version says of itself; None leaves it to the table, and a licence
    that the table does not know is not cleared for commercial use.
    """
    known = find_licence(licence)
    all_duties = tuple(dict.fromkeys((*(known.duties if known else ()), *duties)))
    shown = known.name if known else (licence.strip() or "no licence")
    if deployment == "commercial":
        if commercial_use is None:
            commercial_use = known.commercial_use if known else False
            reason = (
                f"{shown} allows commercial use"
                if commercial_use
                else f"{shown} does not allow commercial use"
                if known
                else f"what {licence.strip()!r} allows is not known, so it is not cleared for commercial use"
                if licence.strip()
                else "the version names no licence, so it is not cleared for commercial use"
            )
        else:
            reason = f"the version says that commercial use is {'' if commercial_use else 'not '}allowed ({shown})"
        return Clearance(allowed=commercial_use, reason=reason, duties=all_duties)
    warning = None
    if deployment == "private" and known is not None and known.research_only:
        warning = f"{shown} is for research only."
    elif known is None:
        warning = f"The terms of {licence.strip()!r} are not known." if licence.strip() else "It names no licence."
    return Clearance(
        allowed=True, reason=f"this is a {deployment} deployment ({shown})", duties=all_duties, warning=warning
    )
