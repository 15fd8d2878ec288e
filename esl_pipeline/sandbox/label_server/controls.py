"""The addresses under /sandbox with which tests and people rule the devices: hang them, break them, let time pass."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, HTTPException
from fastapi.responses import Response

from esl_pipeline.sandbox.label_server.devices import DeviceError, Fleet
from esl_pipeline.sandbox.label_server.floor import Change, Floor, Hang, Template
from esl_pipeline.sandbox.label_server.shelf import places


def device_controls(fleet: Fleet) -> APIRouter:
    """The routes; each is a method of the fleet, for what has no Python at hand."""
    router = APIRouter(prefix="/sandbox")

    @router.get("/shelf")
    def shelf(store: str | None = None) -> Response:
        """What every device shows, of one store or all (places.place)."""
        return Response(orjson.dumps(list(places(fleet, store))), media_type="application/json")

    @router.put("/devices")
    def hang(wish: Hang) -> dict[str, list[str]]:
        try:
            return {"esl_codes": fleet.hang(wish)}
        except DeviceError as error:
            raise HTTPException(422, str(error)) from None

    @router.patch("/devices")
    def change(wish: Change) -> dict[str, int]:
        return {"count": fleet.change(wish)}

    @router.delete("/devices/{store}")
    def remove_all(store: str) -> dict[str, int]:
        return {"count": fleet.remove(store)}

    @router.delete("/devices/{store}/{esl_code}")
    def remove(store: str, esl_code: str) -> dict[str, int]:
        return {"count": fleet.remove(store, [esl_code])}

    @router.put("/aps/{store}/{ap}")
    def set_ap(store: str, ap: str, dead: Annotated[bool, Body(embed=True)]) -> dict[str, int]:
        return {"count": fleet.set_ap(store, ap, dead=dead)}

    @router.get("/floors/{store}")
    def floor(store: str) -> Floor:
        return fleet.floor(store)

    @router.put("/floors/{store}")
    def set_floor(store: str, floor: Floor) -> Floor:
        return fleet.set_floor(store, floor)

    @router.put("/templates")
    def set_template(template: Template) -> dict[str, Any]:
        fleet.set_template(template)
        return template.model_dump()

    @router.post("/tick")
    def tick(seconds: Annotated[float, Body(embed=True, ge=0)]) -> dict[str, float]:
        """Let so many seconds pass at once for the devices."""
        fleet.tick(seconds)
        return {"now": fleet.now()}

    return router
