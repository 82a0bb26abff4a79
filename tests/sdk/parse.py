"""Reads records, a JSON object a line, and prints what the official CloudEvents SDK makes of each."""

import base64
import json
import sys
from datetime import datetime

from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event


def unpacked(text):
    return None if text is None else base64.b64decode(text)


def shown(value):
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value


for line in sys.stdin:
    record = json.loads(line)
    # a header may be null in Kafka, and not to the SDK
    headers = {name: unpacked(value) for name, value in record["headers"] if value is not None}
    message = KafkaMessage(headers, unpacked(record["key"]), unpacked(record["value"]))
    event = from_kafka_event(message)
    attributes = {name: shown(value) for name, value in event.get_attributes().items()}
    print(json.dumps({"attributes": attributes, "data": shown(event.get_data())}))
