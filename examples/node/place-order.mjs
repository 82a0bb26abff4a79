// An order and its event, or neither:
//   DATABASE_URL=… node place-order.mjs 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
import pg from 'pg';

async function placeOrder(client, id, quantity) {
  await client.query('begin');
  try {
    await client.query(`insert into orders (id, sku, quantity) values ($1, 'mug', $2)`, [id, quantity]);
    // an object is sent as its JSON text
    await client.query(`select outbox_relay.emit('Order', $1, 'OrderPlaced', $2)`, [id, { sku: 'mug', quantity }]);
    // fails when there are not as many, and takes the order and its event with it
    await client.query(`update stock set available = available - $1 where sku = 'mug'`, [quantity]);
    await client.query('commit');
  } catch (error) {
    await client.query('rollback');
    throw error;
  }
}

const [id, quantity] = process.argv.slice(2);
const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
try {
  await placeOrder(client, id, Number(quantity));
} finally {
  await client.end();
}
