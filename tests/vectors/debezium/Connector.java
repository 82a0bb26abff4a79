// Prints what Debezium's Postgres connector, its event router and Kafka Connect's JsonConverter make of outbox
// rows, as JSON: `connector.json` beside this file. README.md there says how to run it. Nothing is made up here:
// the rows are inserted into a real Postgres, and the connector reads them and gives them their schemas.

import io.debezium.embedded.Connect;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.transforms.outbox.EventRouter;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Executors;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.json.JsonConverter;
import org.apache.kafka.connect.source.SourceRecord;

public class Connector {
  /** A table, what the router is told, and rows as lists of SQL expressions for `columns`. */
  record Table(String name, Map<String, String> smt, String definition, String columns, List<String> rows) {}

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

  static String text(byte[] bytes) {
    return quoted(bytes == null ? null : new String(bytes, StandardCharsets.UTF_8));
  }

  static JsonConverter converter(boolean isKey, boolean schemas) {
    JsonConverter converter = new JsonConverter();
    converter.configure(Map.of("schemas.enable", Boolean.toString(schemas)), isKey);
    return converter;
  }

  /** Key, value and headers, as JsonConverter writes them. */
  static String printed(SourceRecord record, boolean schemas) {
    byte[] key = converter(true, schemas).fromConnectData(record.topic(), record.keySchema(), record.key());
    byte[] value = converter(false, schemas).fromConnectData(record.topic(), record.valueSchema(), record.value());
    List<String> headers = new ArrayList<>();
    for (Header header : record.headers()) {
      byte[] bytes = converter(false, schemas)
          .fromConnectHeader(record.topic(), header.key(), header.schema(), header.value());
      headers.add("[" + quoted(header.key()) + ", " + text(bytes) + "]");
    }
    return "{\"key\": " + text(key) + ",\n          \"value\": " + text(value) + ",\n          \"headers\": ["
        + String.join(", ", headers) + "]}";
  }

  static Map<String, String> smt(String... pairs) {
    Map<String, String> smt = new LinkedHashMap<>();
    for (int i = 0; i < pairs.length; i += 2) smt.put(pairs[i], pairs[i + 1]);
    return smt;
  }

  static final String USUAL =
      "id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null, "
          + "type varchar(255) not null, ";
  static final String NAMES = "aggregatetype, aggregateid, type, payload";

  static String json(String payload) {
    return "'Order', 'o-1', 'OrderCreated', '" + payload + "'";
  }

  static final List<Table> TABLES = List.of(
      new Table("j_usual", smt(), USUAL + "payload jsonb", NAMES, List.of(
          "'Order', 'o-1', 'OrderCreated', '{\"a\": \"\u00e9\\u20ac\\n\", \"b\": 1.50, \"c\": \"\\ud83d\\ude00\"}'",
          "'Order', E'o-\"1\"\\\\/\\n\\t\\r\\b\\f\\x01\\x1f\\x7f', 'OrderGone', null",
          "'Order', U&'\\+01F600\\2028\\FFFD', 'OrderText', '\"a \\\"quoted\\\" text\"'",
          "'Order', '', 'OrderNull', 'null'")),
      new Table("j_emptied", smt("route.tombstone.on.empty.payload", "true"),
          USUAL + "payload text", NAMES, List.of(
          "'Mail', 'm', 'Sent', E'a\\\\b \\x0b\\x7f\\u2028 \\U0001F600'",
          "'Mail', 'm', 'Sent', ''",
          "'Mail', 'm', 'Sent', E' \\n\\t'",
          "'Mail', 'm', 'Sent', null")),
      new Table("j_kept_empty", smt(), USUAL + "payload text", NAMES, List.of(
          "'Note', 'm', 'Sent', ''", "'Note', 'm', 'Sent', null")),
      new Table("j_bytes", smt(),
          "id uuid primary key, aggregatetype text not null, aggregateid bigint not null, type text not null, "
              + "payload bytea not null", NAMES, List.of(
          "'Blob', -42, 'Up', '\\x00ff10'::bytea", "'Blob', 9223372036854775807, 'Up', ''::bytea",
          "'Blob', 0, 'Up', '\\x61'::bytea")),
      new Table("j_defaults", smt("table.fields.additional.placement",
          "tenant:header,n:header,m:header,v:header:version,neg:header,flag:header,amount:header,doc:header,who:header,"
              + "txt:header,nothing:header,type:header:eventType"),
          "id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null default 'Cart', "
              + "aggregateid uuid not null, type varchar(255) not null, payload json default '{}', "
              + "tenant varchar(20) default 'it''s', n smallint default 5, m int, v bigint not null default 7, "
              + "neg int default -5, flag boolean default true, amount numeric(10,2), doc jsonb default '{\"a\": 1}', "
              + "who uuid, txt text default '', nothing text default null",
          NAMES + ", tenant, n, m, v, neg, flag, amount, doc, who, txt, nothing", List.of(
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', '{\"z\":1,  \"a\":2}', 'acme', 1, 2, 3, 4, false, "
              + "12.5, '[1, 2]', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e11', 't', 'u'",
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', null, null, null, null, -3, null, null, "
              + "null, null, null, null, null",
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', 'null', '', -32768, -2147483648, "
              + "-9223372036854775808, 0, true, -0.01, 'null', null, '', ''",
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', '1', '', 0, 0, 0, 0, true, 99999999.99, '1', "
              + "null, '', ''",
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', '1', '', 0, 0, 0, 0, true, 0, '1', null, '', ''",
          "'Cart', '6f1c2f2e-3c0e-4b43-8a6a-4a5d3c7b9e10', 'Filled', '1', '', 0, 0, 0, 0, true, -1.28, '1', null, "
              + "'', ''")),
      new Table("j_numbered", smt(),
          "id uuid primary key default '00000000-0000-0000-0000-000000000001', aggregatetype text not null, "
              + "aggregateid integer not null default 3, type text not null, payload jsonb not null",
          NAMES, List.of("'Count', 42, 'Up', '{}'")),
      new Table("j_expanded", smt("table.expand.json.payload", "true"), USUAL + "payload text", NAMES, List.of(
          json("{\"b\": 1, \"a\": {\"x\": null, \"y\": [1, 2], \"z\": {}}, \"n\": null, \"e\": []}"),
          json("{\"i\": 2147483647, \"l\": 2147483648, \"b\": 12345678901234567890, \"d\": 1.50, \"z\": 1.0}"),
          json("{\"b\": 123456789012345678901234567890}"),
          json("{\"h\": 1e400}"),
          json("{\"d\": [1e7, 1e-3, 1e-4, 0.1, 123456.789, 1234567.891, 12345678.91, 1e21, 1e300, -0.0]}"),
          json("{\"d\": [1e-320, 3e-323, 123e-7, 0.00123, 0.0099999, 1e22, 1.25e10, 33333333.3, 1e16, 5e-5, 12e5]}"),
          json("{\"d\": [4.9e-324, 2e23, 1.7976931348623157e308, 2.2250738585072014e-308, 9007199254740993.0]}"),
          json("{\"d\": [5e-324, 1e23, 2.0e-3, 9.999999999999999e22, 100.0, 1e6, 9999999.0, 2.5e-4]}"),
          json("{\"s\": \"\u00e9 \\ud83d\\ude00 \\u0001 \\/ \\\" \\n\", \"\u00e9\": true, \"f\": false}"),
          json("{\"dup\": 1, \"dup\": \"two\"}"),
          json("{\"a\": [{\"x\": 1}, {\"x\": 2, \"y\": \"z\"}, {\"x\": null}, {\"y\": null, \"x\": 3}]}"),
          json("{\"a\": [{\"x\": 1}, null]}"), json("{\"a\": [{\"x\": 1}, {}, null]}"),
          json("{\"a\": [{\"x\": []}, {\"x\": [1]}]}"), json("{\"a\": [1, 3000000000]}"),
          json("{\"a\": [[1], [], null, [2, null]]}"), json("{\"a\": [[], [1]]}"), json("{\"a\": [[1], [\"x\"]]}"),
          json("{\"a\": [[1], [3000000000]]}"), json("{\"a\": [[{\"a\": 1}], [{\"b\": 2}]]}"),
          json("{\"a\": [true, null, false], \"b\": [null, \"\"], \"c\": [1.5, null]}"),
          json("{\"\": null, \"n\": -0, \"m\": -9223372036854775808, \"k\": -9223372036854775809.0}"),
          json("{\"n\": -9223372036854775809}"), json("[1, \"x\"]"), json("[null]"), json("{\"h\": [-1e400, 1e400]}"),
          json("{\"b\": 12345678901234567890, \"a\": [1, \"x\"]}"),
          json("{\"a\": [{\"x\": 1}, {\"x\": \"s\"}]}"),
          json("{\"a\": [1, null, 2]}"),
          json("{\"a\": [1, 2.5]}"),
          json("{\"a\": [1, \"x\"]}"),
          json("{\"a\": [[1], [2]]}"),
          json("{\"a\": [[], []]}"),
          json("{\"a\": [null]}"),
          json("[]"), json("[1, 2]"), json("[{\"a\": 1}, {\"b\": null}]"), json("{}"), json(" {\"a\": 1}"),
          json("\"text\""), json("12"), json("null"), json("not json"), json("{\"a\": 1} x"), json("{\"a\": 1"),
          json(""), "'Order', 'o-1', 'OrderGone', null",
          json("{\"with.dot\": 1, \"with space\": {\"\": 2}}"),
          json("{\"a\": {\"b\": {\"c\": [{\"d\": {\"e\": 1}}]}}}"))));

  static String sql(Table table, int row) {
    return String.format("insert into %s (id, %s) values ('00000000-0000-4000-8000-%012d', %s)", table.name,
        table.columns, (TABLES.indexOf(table) + 1) * 1000 + row, table.rows.get(row));
  }

  public static void main(String[] args) throws Exception {
    String url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/postgres?user=postgres";
    int expected = 0;
    try (Connection connection = DriverManager.getConnection(url); Statement statement = connection.createStatement()) {
      for (Table table : TABLES) {
        statement.execute("drop table if exists " + table.name);
        statement.execute("create table " + table.name + " (" + table.definition + ")");
        for (int i = 0; i < table.rows.size(); i++) statement.execute(sql(table, i));
        expected += table.rows.size();
      }
    }
    Properties settings = new Properties();
    settings.putAll(Map.of("name", "outbox", "connector.class", "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore", "topic.prefix", "svc",
        "database.hostname", "127.0.0.1", "database.port", args[0], "database.user", "postgres",
        "database.password", "none", "database.dbname", "postgres", "extended.headers.enabled", "false"));
    settings.putAll(Map.of("plugin.name", "pgoutput", "table.include.list", "public.j_.*", "slot.drop.on.stop", "true"));
    LinkedBlockingQueue<SourceRecord> read = new LinkedBlockingQueue<>();
    DebeziumEngine<ChangeEvent<SourceRecord, SourceRecord>> engine =
        DebeziumEngine.create(Connect.class).using(settings).notifying(event -> read.add(event.value())).build();
    var running = Executors.newSingleThreadExecutor();
    running.execute(engine);
    Map<String, List<String>> rows = new LinkedHashMap<>();
    Map<String, EventRouter<SourceRecord>> routers = new LinkedHashMap<>();
    for (Table table : TABLES) {
      rows.put("svc.public." + table.name, new ArrayList<>());
      EventRouter<SourceRecord> router = new EventRouter<>();
      router.configure(table.smt);
      routers.put("svc.public." + table.name, router);
    }
    for (int i = 0; i < expected; i++) {
      SourceRecord record = read.poll(60, TimeUnit.SECONDS);
      SourceRecord routed = routers.get(record.topic()).apply(record);
      String printed;
      try {
        printed = "\"topic\": " + quoted(routed.topic()) + ",\n         \"json\": " + printed(routed, false)
            + ",\n         \"json_with_schema\": " + printed(routed, true);
      } catch (RuntimeException error) {
        // then the connector's task fails and the row is never sent
        printed = "\"error\": " + quoted(error.toString());
      }
      rows.get(record.topic()).add(printed);
    }
    engine.close();
    running.shutdown();
    List<String> tables = new ArrayList<>();
    for (Table table : TABLES) {
      List<String> all = new ArrayList<>();
      List<String> printed = rows.get("svc.public." + table.name);
      for (int i = 0; i < printed.size(); i++) {
        all.add("        {\"insert\": " + quoted(sql(table, i)) + ",\n         " + printed.get(i) + "}");
      }
      List<String> smt = new ArrayList<>();
      table.smt.forEach((name, value) -> smt.add(quoted(name) + ": " + quoted(value)));
      tables.add("    {\"table\": " + quoted(table.name) + ",\n     \"smt\": {" + String.join(", ", smt)
          + "},\n     \"create\": " + quoted("create table " + table.name + " (" + table.definition + ")")
          + ",\n     \"rows\": [\n" + String.join(",\n", all) + "\n     ]}");
    }
    System.out.println("{\"debezium\": " + quoted(System.getProperty("debezium.version", "unknown")) + ", \"java\": "
        + quoted(System.getProperty("java.version")) + ",\n  \"tables\": [\n" + String.join(",\n", tables) + "\n  ]}");
    System.exit(0);
  }
}
