"""What a driver of MySQL reports comes out as one sentence of the right kind; it may not be installed here."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from grader.errors import GraderError, InfrastructureError, UsageError
from grader.faults import plain_faults

URL = sa.make_url("mysql+pymysql://ann:s3cret@host/hw8")


@pytest.mark.parametrize(
    ("number", "said", "kind", "sentence"),
    [
        (1021, "Disk full (/tmp); waiting for someone to free some space...", InfrastructureError, "make room"),
        (1114, "The table 'grades' is full", InfrastructureError, "make room on its server"),
        (1205, "Lock wait timeout exceeded", InfrastructureError, "stayed locked by another process"),
        (2006, "MySQL server has gone away", InfrastructureError, "check that its server runs"),
        (1419, "You do not have the SUPER privilege", UsageError, "log_bin_trust_function_creators"),
        (1273, "Unknown collation: 'utf8mb4_0900_bin'", UsageError, "should be MySQL 8.0.17, MariaDB 10.3, or later"),
        (
            1045,
            "Access denied for user 'ann' (using password: s3cret)",
            UsageError,
            "refuses this user or the password",
        ),
        (2003, "Can't connect to MySQL server on 'host' (1045)", InfrastructureError, "check that its server runs"),
    ],
)
def test_a_fault_of_mysql_is_one_sentence(number: int, said: str, kind: type[GraderError], sentence: str) -> None:
    """Whose fault it is goes by the number, and no password is in it."""
    with pytest.raises(kind) as refused, plain_faults(URL):
        raise OperationalError("SELECT 1", None, Exception(number, said))
    assert type(refused.value) is kind
    assert sentence in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert "\n" not in str(refused.value)
