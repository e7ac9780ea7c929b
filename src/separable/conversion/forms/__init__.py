"""The forms that a dense convolution can take, each exact at full rank; a form a file."""

from separable.conversion.forms.axes import Axes
from separable.conversion.forms.dense import Dense
from separable.conversion.forms.depthwise import DepthwiseFirst, PointwiseFirst
from separable.conversion.forms.form import Form, Shape, Stage
from separable.conversion.forms.low_rank import DensePointwise, PointwiseDense, Tucker
from separable.conversion.forms.polyadic import Polyadic

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Polyadic(), PointwiseDense(), DensePointwise(), Tucker(), Axes(), DepthwiseFirst(), PointwiseFirst(),
    )
}  # fmt: skip

DENSE = Dense()  # no choice of a plan, which has the layer as it is

__all__ = ["DENSE", "FORMS", "Form", "Shape", "Stage"]
