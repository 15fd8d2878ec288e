"""The buffer's calls about alerts: what is wrong, what people are told of it, and how that gets to them."""

from collections.abc import Sequence

from esl_pipeline.buffer.door import Door, Row


class AlertCalls(Door):
    """A part of Buffer; each method is one SQL function of functions/troubles.sql or functions/alerts.sql."""

    def alert_conditions(self, *, silence_hours: float) -> Row:
        """What is wrong as far as the buffer knows -> {at, conditions, alerts, due, stuck}.

        alerts: those that are not closed. due: who is to be sent something. stuck: to whom nothing gets through.
        """
        return self._call(
            "esl_alert_conditions", label_servers=list(self.label_servers), silence_hours=silence_hours
        )

    def alert_record(self, *, changes: Sequence[Row], recipients: Sequence[Row]) -> None:
        """Keep what becomes of alerts (rows esl.alert_row), and what these recipients are to be told of it."""
        self._call("esl_alert_record", changes=list(changes), recipients=list(recipients))

    def alert_claim(
        self,
        *,
        claim_id: str,
        recipients: Sequence[str],
        critical_only: bool,
        limit: int = 20,
        seconds: float = 60,
    ) -> list[Row]:
        """Lease what is to be sent to these now, `limit` each -> [{id, recipient, event, attempts, alert}]."""
        answer = self._call(
            "esl_alert_claim",
            claim_id=claim_id,
            recipients=list(recipients),
            critical_only=critical_only,
            limit=limit,
            seconds=seconds,
        )
        return list(answer["deliveries"])

    def alert_sent(self, *, claim_id: str, told: Sequence[Row]) -> None:
        """How sending ended for each recipient: {recipient, error, again_seconds}."""
        self._call("esl_alert_sent", claim_id=claim_id, told=list(told))

    def alert_list(self, *, is_open: bool = False, limit: int = 100) -> list[Row]:
        """Alerts that people are told of, the open ones first, each with who was told of it; is_open: no others."""
        return list(self._call("esl_alert_list", open=is_open, limit=limit)["alerts"])
