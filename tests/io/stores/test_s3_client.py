"""What this project changes of botocore's client: here, how times in its answers are read."""

import datetime
from email.utils import format_datetime

from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn.io.stores.s3_client import _time_of


@given(st.datetimes(min_value=datetime.datetime(1980, 1, 1), timezones=st.just(datetime.UTC)))
def test_times_are_read_as_botocore_reads_them(time):
    listed, header = time.strftime("%Y-%m-%dT%H:%M:%S.000Z"), format_datetime(time, usegmt=True)
    for value in (listed, header, time.timestamp()):
        assert _time_of(value) == parse_timestamp(value)
