// An order and its event, or neither, by Spring's JdbcTemplate and @Transactional:
//   mvn dependency:copy-dependencies -DoutputDirectory=jars && javac -cp 'jars/*' -d classes *.java
//   DATABASE_URL=… java -cp 'jars/*:classes' PlaceOrderSpring 0c0e0f5e-3f53-4c52-9f21-8d3f4a2f1b10 2
import java.net.URI;
import java.util.UUID;
import javax.sql.DataSource;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.jdbc.datasource.DataSourceTransactionManager;
import org.springframework.jdbc.datasource.DriverManagerDataSource;
import org.springframework.transaction.PlatformTransactionManager;
import org.springframework.transaction.annotation.EnableTransactionManagement;
import org.springframework.transaction.annotation.Transactional;

public class PlaceOrderSpring {
    public static class Orders {
        private final JdbcTemplate jdbc;

        public Orders(DataSource source) {
            jdbc = new JdbcTemplate(source);
        }

        @Transactional
        public void place(UUID id, int quantity) {
            jdbc.update("insert into orders (id, sku, quantity) values (?, 'mug', ?)", id, quantity);
            jdbc.update("""
                insert into outbox (aggregate_type, aggregate_id, event_type, payload)
                values ('Order', ?, 'OrderPlaced', ?::jsonb)""",
                id, "{\"sku\": \"mug\", \"quantity\": " + quantity + "}");
            // fails when there are not as many, and takes the order and its event with it
            jdbc.update("update stock set available = available - ? where sku = 'mug'", quantity);
        }
    }

    @Configuration
    @EnableTransactionManagement
    public static class Shop {
        @Bean
        public DataSource dataSource() {
            var url = URI.create(System.getenv("DATABASE_URL"));
            var login = url.getUserInfo().split(":", 2);
            var jdbc = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath();
            return new DriverManagerDataSource(jdbc, login[0], login[1]);
        }

        @Bean
        public PlatformTransactionManager transactions(DataSource source) {
            return new DataSourceTransactionManager(source);
        }

        @Bean
        public Orders orders(DataSource source) {
            return new Orders(source);
        }
    }

    public static void main(String[] arguments) {
        try (var shop = new AnnotationConfigApplicationContext(Shop.class)) {
            shop.getBean(Orders.class).place(UUID.fromString(arguments[0]), Integer.parseInt(arguments[1]));
        }
    }
}
