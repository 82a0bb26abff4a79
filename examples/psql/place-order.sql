-- An order and its event, or neither:
--   psql "$DATABASE_URL" -v id=0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 -v quantity=2 -f place-order.sql
\set ON_ERROR_STOP on

begin;

insert into orders (id, sku, quantity) values (:'id', 'mug', :quantity);

select outbox_relay.emit('Order', :'id', 'OrderPlaced',
                         jsonb_build_object('sku', 'mug', 'quantity', :quantity));

-- fails when there are not as many, and takes the order and its event with it
update stock set available = available - :quantity where sku = 'mug';

commit;
