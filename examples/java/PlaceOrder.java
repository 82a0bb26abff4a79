// An order and its event, or neither, by JDBC alone:
//   mvn dependency:copy-dependencies -DoutputDirectory=jars && javac -cp 'jars/*' -d classes *.java
//   DATABASE_URL=… java -cp 'jars/*:classes' PlaceOrder 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.UUID;

public class PlaceOrder {
    static void placeOrder(Connection connection, UUID id, int quantity) throws SQLException {
        connection.setAutoCommit(false);
        try {
            try (var order = connection.prepareStatement(
                    "insert into orders (id, sku, quantity) values (?, 'mug', ?)")) {
                order.setObject(1, id);
                order.setInt(2, quantity);
                order.executeUpdate();
            }
            try (var event = connection.prepareStatement(
                    "select outbox_relay.emit('Order', ?, 'OrderPlaced', ?)")) {
                event.setObject(1, id);
                event.setString(2, "{\"sku\": \"mug\", \"quantity\": " + quantity + "}");
                event.execute();
            }
            // fails when there are not as many, and takes the order and its event with it
            try (var stock = connection.prepareStatement(
                    "update stock set available = available - ? where sku = 'mug'")) {
                stock.setInt(1, quantity);
                stock.executeUpdate();
            }
            connection.commit();
        } catch (SQLException e) {
            connection.rollback();
            throw e;
        }
    }

    public static void main(String[] arguments) throws Exception {
        var url = URI.create(System.getenv("DATABASE_URL"));
        var login = url.getUserInfo().split(":", 2);
        var jdbc = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath();
        try (var connection = DriverManager.getConnection(jdbc, login[0], login[1])) {
            placeOrder(connection, UUID.fromString(arguments[0]), Integer.parseInt(arguments[1]));
        }
    }
}
