"""Figures without a display, in the colors of light and dark pages."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOREGROUND = {False: "#1d2530", True: "#e6e9ee"}  # by whether the page is dark
BACKGROUND = {False: "#ffffff", True: "#000000"}


def new_figure(width: float, height: float, dark: bool = False) -> "Figure":
    """Return an empty figure that needs no display and leaves matplotlib's backend as it is.

    Parameters
    ----------
    width, height : float
        Size in inches.
    dark : bool
        Whether the figure is for a dark page.

    Returns
    -------
    matplotlib.figure.Figure
        Without axes.

    Examples
    --------
    >>> from mindllm.plotting.style import new_figure
    >>> new_figure(4, 3).get_size_inches().tolist()
    [4.0, 3.0]
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor=BACKGROUND[dark])
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: "Figure", dpi: int = 110, transparent: bool = False) -> bytes:
    """Return a figure as PNG bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    dpi : int
        Dots per inch.
    transparent : bool
        Whether the background is left out.

    Returns
    -------
    bytes
        Content of a PNG file.
    """
    buffer = io.BytesIO()
    background = "none" if transparent else figure.get_facecolor()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=background)
    return buffer.getvalue()


def style_axes(axes: "Axes", dark: bool = False) -> None:
    """Remove the upper, left and right spines and the ticks, and color the labels.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Changed in place.
    dark : bool
        Whether the figure is for a dark page.
    """
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FOREGROUND[dark])
    axes.tick_params(colors=FOREGROUND[dark], length=0)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_color(FOREGROUND[dark])
