"""report: result files -> one self-contained HTML page, and the same pictures as PNG files.

    RUN... --[find, read]--> Run values --[chart_*]--> Pictures --[page]--> report.html
                                                           +------[png]---> DIR/*.png

Nothing is computed on a model and no data is read: a page can be made where only the result files are left. A chart is a
Vega-Lite specification made with Altair; the libraries that draw it come out of the vl-convert package and are written into
the page, so that it opens without a network.
"""

try:
    import altair as altair
    import jinja2 as jinja2
    import vl_convert as vl_convert
except ImportError as error:
    raise ImportError(f"a report needs {error.name}: pip install 'qvit[report]'") from error

from .find import ReportError as ReportError
from .make import make_report as make_report
from .make import refresh as refresh
