"""The registry of routes. A new endpoint is a new file and a line here; /rank stands in front."""

from typing import Final

from fastapi import APIRouter

from service.routes import health, models

ROUTERS: Final[tuple[APIRouter, ...]] = (models.router, health.router)
