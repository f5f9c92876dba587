// The ten meters in Kafka Streams: one windowed aggregate an account, as its developer guide writes it.
//
// java StreamsPeer BOOTSTRAP EVENTS_TOPIC USAGE_TOPIC APPLICATION_ID GUARANTEE STATE_DIRECTORY
//
// Progress goes to stdout ("counted N"), each changed aggregate to the usage topic. SIGTERM closes it in good order.

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.WindowStore;

public final class StreamsPeer {
    private static final Duration WINDOW = Duration.ofHours(1);
    private static final Duration GRACE = Duration.ofMinutes(2);
    private static final int REPORT_EVERY = 1_000;
    private static final ObjectMapper JSON = new ObjectMapper();

    @JsonIgnoreProperties(ignoreUnknown = true)
    public record Event(
            String user,
            String route,
            String method,
            int status,
            @JsonProperty("blocked_by") String blockedBy,
            @JsonProperty("latency_ms") long latencyMs,
            @JsonProperty("request_bytes") long requestBytes,
            @JsonProperty("response_bytes") long responseBytes,
            EventProperties properties) {}

    @JsonIgnoreProperties(ignoreUnknown = true)
    public record EventProperties(
            @JsonProperty("tokens_in") String tokensIn, @JsonProperty("tokens_out") String tokensOut) {}

    /** Usage of one account in one hour; the names are those of benchmarks/meters.yaml. */
    public static final class Usage {
        public long calls;
        @JsonProperty("billable_calls") public long billableCalls;
        @JsonProperty("chat_calls") public long chatCalls;
        public long writes;
        public long failures;
        @JsonProperty("egress_bytes") public long egressBytes;
        @JsonProperty("ingress_bytes") public long ingressBytes;
        @JsonProperty("chat_tokens") public long chatTokens;
        @JsonProperty("slowest_call") public long slowestCall;
        @JsonProperty("active_users") public List<String> activeUsers = new ArrayList<>();

        Usage add(Event event) {
            calls++;
            egressBytes += event.responseBytes();
            if (event.status() < 500) {
                ingressBytes += event.requestBytes();
                slowestCall = Math.max(slowestCall, event.latencyMs());
                if (event.blockedBy() == null) {
                    billableCalls++;
                }
            } else {
                failures++;
            }
            if ("chat".equals(event.route()) && event.status() < 400) {
                chatCalls++;
                chatTokens += Long.parseLong(event.properties().tokensIn());
                chatTokens += Long.parseLong(event.properties().tokensOut());
            }
            if ("POST".equals(event.method()) || "PUT".equals(event.method())) {
                writes++;
            }
            if (event.user() != null && !activeUsers.contains(event.user())) {
                activeUsers.add(event.user());
            }
            return this;
        }
    }

    private static <T> Serde<T> json(Class<T> type) {
        return Serdes.serdeFrom(
                (topic, value) -> {
                    try {
                        return value == null ? null : JSON.writeValueAsBytes(value);
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                },
                (topic, bytes) -> {
                    try {
                        return bytes == null ? null : JSON.readValue(bytes, type);
                    } catch (IOException error) {
                        throw new UncheckedIOException(error);
                    }
                });
    }

    private static long counted;

    private static void report() {
        if (++counted % REPORT_EVERY == 0) {
            System.out.println("counted " + counted);
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        final Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[3]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, arguments[4]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[5]);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG), 6_000);

        final StreamsBuilder builder = new StreamsBuilder();
        builder.stream(arguments[1], Consumed.with(Serdes.String(), json(Event.class)))
                .peek((account, event) -> report())
                .groupByKey()
                .windowedBy(TimeWindows.ofSizeAndGrace(WINDOW, GRACE))
                .aggregate(
                        Usage::new,
                        (account, event, usage) -> usage.add(event),
                        Materialized.<String, Usage, WindowStore<Bytes, byte[]>>as("usage")
                                .withKeySerde(Serdes.String())
                                .withValueSerde(json(Usage.class)))
                .toStream()
                .map((windowed, usage) ->
                        KeyValue.pair(windowed.key() + "@" + windowed.window().start(), usage))
                .to(arguments[2], Produced.with(Serdes.String(), json(Usage.class)));

        final KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        final CountDownLatch ended = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            streams.close();
            ended.countDown();
        }));
        streams.start();
        ended.await();
    }
}
