r"""Routes by which the code of a cell moves from one condition to another, in CGMDVAE.

    "decoder"     z' = z
    "transport"   z' = sum_k r_k [m_k(w', c') + s_k(w', c') / s_k(w, c) (z - m_k(w, c))]
    "style"       z' = m_k(w', c')    with the most probable k at the posterior means

    w' is w, carried from p(w | c) to p(w | c');  r_k = q(k | z, w, c)

If the label of a cell is known, ``r`` has only the components of that label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from scalloy.vae.base import Batch, Distributions, HasConditions, Latents
    from scalloy.vae.cgmdvae import CGMDVAE

STAYING = {"auto", "decoder"}


def moved(
    module: HasConditions, batch: Batch, code: int, q: Distributions, latents: Latents, route: str
) -> Latents:
    """Return the latents of cells under another condition.

    Parameters
    ----------
    module
        Trained module; routes that move the code need a CGMDVAE.
    batch
        Cells under their own condition.
    code
        Code of the other condition.
    q
        Posterior of their latents.
    latents
        One sample of them, which ``"style"`` replaces by the means.
    route
        Name of the route.
    """
    if route in STAYING:
        return latents
    module = cast("CGMDVAE", module)
    c, to, new = batch.condition, torch.full_like(batch.condition, code), dict(latents)
    z, w = (q["z"].mean, q["w"].mean) if route == "style" else (latents["z"], latents.get("w"))
    if w is not None:
        new["w"] = module.style.carried(w, c, to)
    here, there = module.prior(c, w), module.prior(to, new.get("w"))
    r = module.known(module.log_assignment(here, z, c), batch.y)[0].exp()
    if route == "style":
        return {**new, "z": there.of_component(r.argmax(-1))[0]}
    residual = (z.unsqueeze(-2) - here.loc) / here.scale
    return {**new, "z": (r.unsqueeze(-1) * (there.loc + there.scale * residual)).sum(-2)}
