"""Figures without a display, for light and dark pages."""

import io
from typing import Any

INK = {False: "#1d2530", True: "#e6e9ee"}
PAPER = {False: "#ffffff", True: "#000000"}


def new_figure(width: float, height: float, dark: bool = False) -> Any:
    """An empty figure in inches that needs no display and leaves the caller's matplotlib backend alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=PAPER[dark])
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any, dpi: int = 110, transparent: bool = False) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=dpi, facecolor="none" if transparent else figure.get_facecolor()
    )
    return buffer.getvalue()


def style_axes(axes: Any, dark: bool = False) -> None:
    """Quiet axes in the page's ink."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK[dark])
    axes.tick_params(colors=INK[dark], length=0)
    axes.xaxis.label.set_color(INK[dark])
    axes.yaxis.label.set_color(INK[dark])
    axes.title.set_color(INK[dark])
