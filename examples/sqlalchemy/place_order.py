"""An order and its event, or neither:
DATABASE_URL=… python place_order.py 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
"""

import os
import sys
import uuid

from sqlalchemy import create_engine, make_url, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"
    sku: Mapped[str] = mapped_column(primary_key=True)
    available: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]


class Event(Base):
    """A row of the outbox. What the table fills in by itself is not mapped, nor is the relay's column seq."""

    __tablename__ = "outbox"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    aggregate_type: Mapped[str]
    aggregate_id: Mapped[uuid.UUID]
    event_type: Mapped[str]
    payload: Mapped[dict] = mapped_column(JSONB)


def place_order(session, order_id, quantity):
    session.add(Order(id=order_id, sku="mug", quantity=quantity))
    session.add(
        Event(
            aggregate_type="Order",
            aggregate_id=order_id,
            event_type="OrderPlaced",
            payload={"sku": "mug", "quantity": quantity},
        )
    )
    session.flush()
    # fails when there are not as many, and takes the order and its event with it
    session.execute(
        update(Stock).where(Stock.sku == "mug").values(available=Stock.available - quantity)
    )


url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
# the session commits at the end of the block, or rolls back what failed in it
with Session(create_engine(url)) as session, session.begin():
    place_order(session, uuid.UUID(sys.argv[1]), int(sys.argv[2]))
