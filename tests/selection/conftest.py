"""The small worlds of the engine's tests, for what is chosen in them."""

from tests.testtime.conftest import (
    big as big,
)
from tests.testtime.conftest import (
    data as data,
)
from tests.testtime.conftest import (
    memorised as memorised,
)
from tests.testtime.conftest import (
    plain as plain,
)
from tests.testtime.conftest import (
    rare as rare,
)
from tests.testtime.conftest import (
    rare_trial_model as rare_trial_model,
)
from tests.testtime.conftest import (
    rare_valid as rare_valid,
)
from tests.testtime.conftest import (
    trial_model as trial_model,
)
from tests.testtime.conftest import (
    valid as valid,
)
