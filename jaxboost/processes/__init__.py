"""Several processes that train one run together: who they are, what they agree on, and how they end together.

Without `joining.joined`, or with one process, the functions here are those of a process alone: they wait for nobody.
`launch` finds the processes, `hub` and `member` connect them, `joining` starts JAX on all of them.
"""

from jaxboost.processes.group import ANNOUNCEMENTS as ANNOUNCEMENTS
from jaxboost.processes.group import all_stop as all_stop
from jaxboost.processes.group import announce as announce
from jaxboost.processes.group import check_same as check_same
from jaxboost.processes.group import count as count
from jaxboost.processes.group import first as first
from jaxboost.processes.group import gather as gather
from jaxboost.processes.group import index as index
from jaxboost.processes.group import is_first as is_first
from jaxboost.processes.group import name_of as name_of
from jaxboost.processes.group import working as working
