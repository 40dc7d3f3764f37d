"""A revision knows its services by name."""

from penstock_supervisor.config.model import Config, Service
from penstock_supervisor.rollout.revision import Revision


def test_services_are_found_by_name() -> None:
    app = Service.model_validate({"name": "app", "listen": "127.0.0.1:2", "app": "a:b"})
    assert Revision(1, Config(services=(app,)), {}, {}).services == {"app": app}
