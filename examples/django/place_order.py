"""An order and its event, or neither:
DATABASE_URL=… python place_order.py 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
"""

import os
import sys
import uuid
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings

url = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": url.hostname,
            "PORT": url.port or 5432,
            "NAME": unquote(url.path.lstrip("/")),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
        }
    },
    USE_TZ=True,
)
django.setup()

from django.db import models, transaction  # noqa: E402
from django.db.models import F  # noqa: E402
from django.db.models.functions import Now  # noqa: E402


class Stock(models.Model):
    sku = models.TextField(primary_key=True)
    available = models.IntegerField()

    class Meta:
        app_label, managed, db_table = "shop", False, "stock"


class Order(models.Model):
    id = models.UUIDField(primary_key=True)
    sku = models.TextField()
    quantity = models.IntegerField()

    class Meta:
        app_label, managed, db_table = "shop", False, "orders"


class Event(models.Model):
    """A row of the outbox. Its column seq is the relay's, and no field here."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    aggregate_type = models.TextField()
    aggregate_id = models.UUIDField()
    event_type = models.TextField()
    payload = models.JSONField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        app_label, managed, db_table = "shop", False, "outbox"


@transaction.atomic
def place_order(order_id, quantity):
    Order.objects.create(id=order_id, sku="mug", quantity=quantity)
    Event.objects.create(
        aggregate_type="Order",
        aggregate_id=order_id,
        event_type="OrderPlaced",
        payload={"sku": "mug", "quantity": quantity},
    )
    # fails when there are not as many, and takes the order and its event with it
    Stock.objects.filter(sku="mug").update(available=F("available") - quantity)


place_order(uuid.UUID(sys.argv[1]), int(sys.argv[2]))
