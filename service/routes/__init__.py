"""The registry of routes: a new endpoint is a new file and a line here. What ranks is in front."""

from typing import Final

from fastapi import APIRouter

from service.routes import health, models
from service.routes.endpoint import Operation
from service.routes.rank import RANK
from service.routes.recommend import RECOMMEND

ROUTERS: Final[tuple[APIRouter, ...]] = (models.router, health.router)
OPERATIONS: Final[tuple[Operation, ...]] = (RANK, RECOMMEND)
