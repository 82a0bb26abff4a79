// Prints what Debezium's event router makes of outbox rows, as JSON: `event_router.json` beside this file.
// README.md there says how to run it. Rows are given as the Postgres connector hands them over: a Connect
// struct by Debezium's own schema of each type, json and jsonb as the text that Postgres prints.

import io.debezium.data.Envelope;
import io.debezium.data.Json;
import io.debezium.data.Uuid;
import io.debezium.transforms.outbox.EventRouter;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Base64;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.header.internals.RecordHeaders;
import io.debezium.converters.BinaryDataConverter;
import org.apache.kafka.connect.data.Decimal;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.storage.Converter;
import org.apache.kafka.connect.storage.SimpleHeaderConverter;
import org.apache.kafka.connect.storage.StringConverter;

public class Vectors {
  record Column(String name, String type) {}

  record Table(String name, Map<String, String> smt, List<Column> columns, List<List<String>> rows) {}

  static Schema schema(String type) {
    return switch (type) {
      case "uuid" -> Uuid.builder().optional().build();
      case "jsonb", "json" -> Json.builder().optional().build();
      case "bigint" -> Schema.OPTIONAL_INT64_SCHEMA;
      case "integer" -> Schema.OPTIONAL_INT32_SCHEMA;
      case "boolean" -> Schema.OPTIONAL_BOOLEAN_SCHEMA;
      case "numeric(10,2)" -> Decimal.builder(2).optional().build();
      case "bytea" -> Schema.OPTIONAL_BYTES_SCHEMA;
      case "timestamptz" -> SchemaBuilder.string().optional().name("io.debezium.time.ZonedTimestamp").build();
      case "timestamp" -> SchemaBuilder.int64().optional().name("io.debezium.time.MicroTimestamp").build();
      default -> Schema.OPTIONAL_STRING_SCHEMA;
    };
  }

  static Object value(String type, String text) {
    if (text == null) return null;
    return switch (type) {
      case "bigint" -> Long.valueOf(text);
      case "integer" -> Integer.valueOf(text);
      case "boolean" -> Boolean.valueOf(text);
      case "numeric(10,2)" -> new BigDecimal(text).setScale(2);
      case "bytea" -> text.getBytes(StandardCharsets.UTF_8);
      case "timestamptz" -> text.replace(' ', 'T').replace("+00", "Z");
      case "timestamp" -> {
        Instant at = Instant.parse(text.replace(' ', 'T') + "Z");
        yield at.getEpochSecond() * 1_000_000L + at.getNano() / 1_000;
      }
      default -> text;
    };
  }

  static SourceRecord inserted(Table table, List<String> row) {
    SchemaBuilder builder = SchemaBuilder.struct().name("svc.public." + table.name + ".Value");
    for (Column column : table.columns) builder.field(column.name, schema(column.type));
    Schema rows = builder.optional().build();
    Schema source = SchemaBuilder.struct().name("source").field("ts_ms", Schema.OPTIONAL_INT64_SCHEMA).build();
    Envelope envelope =
        Envelope.defineSchema()
            .withName("svc.public." + table.name + ".Envelope")
            .withRecord(rows)
            .withSource(source)
            .build();
    Struct after = new Struct(rows);
    for (int i = 0; i < row.size(); i++) {
      after.put(table.columns.get(i).name, value(table.columns.get(i).type, row.get(i)));
    }
    Struct value = envelope.create(after, new Struct(source).put("ts_ms", 1L), Instant.ofEpochMilli(2));
    Schema key = SchemaBuilder.struct().field("id", schema("uuid")).build();
    return new SourceRecord(
        Map.of(), Map.of(), "svc.public." + table.name, key, new Struct(key).put("id", row.get(0)),
        envelope.schema(), value);
  }

  static String bytes(byte[] bytes) {
    return bytes == null ? "null" : "\"" + Base64.getEncoder().encodeToString(bytes) + "\"";
  }

  static String quoted(String text) {
    if (text == null) return "null";
    StringBuilder out = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') out.append('\\').append(c);
      else if (c < ' ' || c > '~') out.append(String.format("\\u%04x", (int) c));
      else out.append(c);
    }
    return out.append('"').toString();
  }

  static String printed(Table table) {
    EventRouter<SourceRecord> router = new EventRouter<>();
    router.configure(table.smt);
    List<String> rows = new ArrayList<>();
    for (List<String> row : table.rows) {
      SourceRecord record = router.apply(inserted(table, row));
      Converter values = record.valueSchema() != null && record.valueSchema().type() == Schema.Type.BYTES
          ? new BinaryDataConverter() : new StringConverter();
      values.configure(Map.of(), false);
      StringConverter keys = new StringConverter();
      keys.configure(Map.of(), true);
      SimpleHeaderConverter names = new SimpleHeaderConverter();
      List<String> headers = new ArrayList<>();
      for (Header header : record.headers()) {
        byte[] value = names.fromConnectHeader(record.topic(), header.key(), header.schema(), header.value());
        headers.add("[" + quoted(header.key()) + ", " + bytes(value) + "]");
      }
      List<String> given = new ArrayList<>();
      for (String cell : row) given.add(quoted(cell));
      rows.add(
          "        {\"row\": [" + String.join(", ", given) + "],\n"
              + "         \"topic\": " + quoted(record.topic())
              + ", \"key\": " + bytes(keys.fromConnectData(record.topic(), new RecordHeaders(), record.keySchema(), record.key()))
              + ",\n         \"value\": " + bytes(values.fromConnectData(record.topic(), record.valueSchema(), record.value()))
              + ",\n         \"headers\": [" + String.join(", ", headers) + "]}");
    }
    List<String> columns = new ArrayList<>();
    for (Column column : table.columns) {
      columns.add("[" + quoted(column.name) + ", " + quoted(column.type) + "]");
    }
    List<String> smt = new ArrayList<>();
    table.smt.forEach((name, value) -> smt.add(quoted(name) + ": " + quoted(value)));
    return "    {\"table\": " + quoted(table.name) + ",\n     \"smt\": {" + String.join(", ", smt)
        + "},\n     \"columns\": [" + String.join(", ", columns) + "],\n     \"rows\": [\n"
        + String.join(",\n", rows) + "\n     ]}";
  }

  static List<Column> columns(String key, String payload, String... more) {
    List<Column> all = new ArrayList<>(List.of(
        new Column("id", "uuid"), new Column("aggregatetype", "varchar(255)"),
        new Column("aggregateid", key), new Column("type", "varchar(255)"),
        new Column("payload", payload)));
    for (int i = 0; i < more.length; i += 2) all.add(new Column(more[i], more[i + 1]));
    return all;
  }

  static int last = 0;

  static List<String> row(String... cells) {
    List<String> row = new ArrayList<>();
    row.add(String.format("00000000-0000-4000-8000-%012d", ++last));
    for (String cell : cells) row.add(cell);
    return row;
  }

  static Map<String, String> smt(String... pairs) {
    Map<String, String> smt = new LinkedHashMap<>();
    for (int i = 0; i < pairs.length; i += 2) smt.put(pairs[i], pairs[i + 1]);
    return smt;
  }

  public static void main(String[] args) {
    List<Table> tables = List.of(
        new Table("usual", smt(), columns("varchar(255)", "jsonb"), List.of(
            row("Order", "o-1", "OrderCreated", "{\"a\": \"\u00e9\", \"b\": 1.50}"),
            row("Order", "o-1", "OrderGone", null),
            row("Order", "", "OrderText", "\"a \\\"quoted\\\" text\""),
            row("OrderLine", "\u00fc-\u20ac", "Listed", "[1, 2.0, 12345678901234567890, null]"),
            row("Order", "o-2", "Truth", "true"))),
        new Table("emptied", smt("route.tombstone.on.empty.payload", "true"),
            columns("varchar(255)", "text"), List.of(
                row("Mail", "m", "Sent", "a"),
                row("Mail", "m", "Sent", ""),
                row("Mail", "m", "Sent", " \n\t"),
                row("Mail", "m", "Sent", null),
                row("Mail", "m", "Sent", " a "))),
        new Table("kept_empty", smt(), columns("varchar(255)", "text"), List.of(
            row("Note", "m", "Sent", ""),
            row("Note", "m", "Sent", null))),
        new Table("placed",
            smt("table.fields.additional.placement",
                "type:header:eventType,tenant:header,version:header:v,flag:header,amount:header,doc:header,who:header"),
            columns("varchar(255)", "jsonb", "tenant", "varchar(255)", "version", "bigint", "flag", "boolean",
                "amount", "numeric(10,2)", "doc", "jsonb", "who", "uuid"),
            List.of(
                row("Cart", "c", "Filled", "{}", "acme", "7", "true", "12.50", "{\"x\": [1, 2]}",
                    "6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10"),
                row("Cart", "c", "Filled", "{}", "", "-1", "false", "0.00", "\"s\"", null),
                row("Cart", "c", "Filled", "{}", null, null, null, null, null, null))),
        new Table("rerouted",
            smt("route.by.field", "tenant", "route.topic.regex", "(?<name>.*)-(eu|us)",
                "route.topic.replacement", "$2.${name}.events"),
            columns("varchar(255)", "jsonb", "tenant", "varchar(255)"),
            List.of(
                row("Cart", "c", "Filled", "{}", "acme-eu"),
                row("Cart", "c", "Filled", "{}", "a-b-us"),
                row("Cart", "c", "Filled", "{}", "elsewhere"))),
        new Table("renamed",
            smt("table.field.event.id", "uid", "table.field.event.key", "part", "table.field.event.type", "name",
                "table.field.event.payload", "body", "route.by.field", "kind"),
            List.of(new Column("uid", "uuid"), new Column("kind", "text"), new Column("part", "uuid"),
                new Column("name", "text"), new Column("body", "json")),
            List.of(row("Parcel", "0d9b5f1a-6c35-4a53-9a3c-2f6d0f0b7c11", "Packed", "{\"z\":1,  \"a\":2}"))),
        new Table("numbered", smt(), columns("bigint", "jsonb"), List.of(row("Count", "42", "Up", "{}"))),
        new Table("binary_payload", smt(), columns("integer", "bytea"), List.of(row("Blob", "-7", "Up", "raw \u0001"))),
        // what the relay sends otherwise: see docs/debezium.md
        new Table("times", smt("table.fields.additional.placement", "at:header,local_at:header"),
            columns("varchar(255)", "jsonb", "at", "timestamptz", "local_at", "timestamp"),
            List.of(row("Time", "t", "Told", "{}", "2024-01-02 03:04:05.000006+00", "2024-01-02 03:04:05.000006"))));
    List<String> printed = new ArrayList<>();
    for (Table table : tables) printed.add(printed(table));
    System.out.println("{\"debezium\": " + quoted(io.debezium.transforms.outbox.EventRouter.class.getPackage()
        .getImplementationVersion() == null ? System.getProperty("debezium.version", "unknown")
        : EventRouter.class.getPackage().getImplementationVersion()) + ",\n  \"tables\": [\n"
        + String.join(",\n", printed) + "\n  ]}");
  }
}
