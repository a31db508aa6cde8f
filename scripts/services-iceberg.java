// An Iceberg REST catalog for tests: the reference implementation's own test server, on this machine
// alone. Arguments: the port, and the folder for tables. What tables there are is in its memory.

import java.net.InetSocketAddress;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogProperties;
import org.apache.iceberg.jdbc.JdbcCatalog;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

class IcebergServer {
    public static void main(String[] arguments) throws Exception {
        JdbcCatalog catalog = new JdbcCatalog();
        catalog.setConf(new Configuration(false));
        catalog.initialize("tests", Map.of(
                CatalogProperties.URI, "jdbc:sqlite:file::memory:?cache=shared",
                CatalogProperties.WAREHOUSE_LOCATION, "file://" + arguments[1],
                CatalogProperties.CLIENT_POOL_SIZE, "1",
                "jdbc.schema-version", "V1"));
        ServletContextHandler context = new ServletContextHandler();
        context.setContextPath("/");
        context.addServlet(new ServletHolder(new RESTCatalogServlet(new RESTCatalogAdapter(catalog))), "/*");
        Server server = new Server(
                new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])));
        server.setHandler(context);
        server.start();
        server.join();
    }
}
