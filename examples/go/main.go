// An order and its event, or neither:
//
//	DATABASE_URL=… go run . 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5"
)

func placeOrder(ctx context.Context, conn *pgx.Conn, id string, quantity int) error {
	// commits if the function returns nil, and rolls back if it does not
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into orders (id, sku, quantity) values ($1, 'mug', $2)", id, quantity)
		if err != nil {
			return err
		}
		payload, err := json.Marshal(map[string]any{"sku": "mug", "quantity": quantity})
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "select outbox_relay.emit('Order', $1, 'OrderPlaced', $2)", id, string(payload))
		if err != nil {
			return err
		}
		// fails when there are not as many, and takes the order and its event with it
		_, err = tx.Exec(ctx, "update stock set available = available - $1 where sku = 'mug'", quantity)
		return err
	})
}

func main() {
	ctx := context.Background()
	quantity, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	err = placeOrder(ctx, conn, os.Args[1], quantity)
	conn.Close(ctx)
	if err != nil {
		log.Fatal(err)
	}
}
